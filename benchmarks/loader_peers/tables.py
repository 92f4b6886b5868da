"""The tables of docs/benchmarks.md."""

from collections.abc import Iterable
from statistics import median
from typing import Any

RATES = {
    ("sequential", "rate"): "sequential",
    ("shuffled", "rate"): "shuffled",
    ("inline", "rate"): "shuffled batches, no workers",
    ("workers", "rate"): "the same, 2 workers",
    ("workers", "steady"): "after the first batch",
    ("decoded", "rate"): "decoded by OpenCV, 2 workers",
    ("decoded_inline", "rate"): "the same, no workers",
    ("decoded_own", "rate"): "decoded by its own, 2 workers",
}
MICRO = 1e6


def heading(*titles: str) -> None:
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def excuse(answers: Iterable[dict[str, Any]]) -> str:
    """Why there is no figure, if there is none."""
    return next((a.get("failed") or "not offered" for a in answers if "failed" in a or "not_offered" in a), "")


def spread(values: list[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def figures(answers: list[dict[str, Any]], name: str, form: str, unit: float = 1) -> str:
    return excuse(answers) or spread([a[name] * unit for a in answers], form)


def report(results: dict[str, Any]) -> None:
    """Print everything, losses included."""
    measured, versions, (identities, views) = results["measures"], results["versions"], results["size"]
    print(
        f"\n`{results['command']}`: {identities} identities of {views} views, 256 px JPEG and JSON. {results['machine']}."
    )
    print(f"Median of {results['repeats']} rounds (range); page cache warm, one process each; samples per second:")
    heading("", "version", *RATES.values())
    for name, version in versions.items():
        row(name, version, *(figures(measured[m][name], field, ",.0f") for m, field in RATES))
    print("\nWorkers are processes; spinset's are threads where nothing is decoded.")
    for name, problem in results["problems"].items():
        if problem:
            print(f"\n{name}: {problem}")
    heading("", "random access p50, us", "p99, us", "first batch with imports, s", "without, s")
    for name in versions:
        random, first = measured["random"][name], measured["first"][name]
        latency = (figures(random, p, ",.0f", MICRO) for p in ("p50", "p99"))
        row(name, *latency, *(figures(first, f, ".2f") for f in ("with_imports", "without")))
    resumes(results["resumes"])
    heading(
        "", f"identities in a batch of 64, ideal {results['ideal']:.2f}", "of ideal", "samples of 4 ranks, 6 shards"
    )
    for name in versions:
        mixed = results["distinct"][name]
        mixing = [mixed, ""] if isinstance(mixed, str) else [f"{mixed:.2f}", f"{mixed / results['ideal']:.1%}"]
        row(name, *mixing, results["ranks"][name])
    own(results["own"])


def resumes(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Table of interrupted epochs."""
    cases = next(iter(found.values()))
    heading("repeated / missing / other steps", *cases, "first batch after imports, s", "bytes of state")
    for name, own_cases in found.items():
        cells = (excuse([a]) or f"{a['repeated']:,} / {a['missing']:,} / {a['other']:,}" for a in own_cases.values())
        plain = own_cases["dict"]
        facts = [excuse([plain]), ""] if excuse([plain]) else [f"{plain['seconds']:.2f}", f"{plain['state']:,}"]
        row(name, *cells, *facts)


def own(found: dict[str, Any]) -> None:
    """Tables of the measurements of spinset's loader alone."""
    heading("8 of 125 views at 512 px", "bytes needed", "bytes read", "read / needed")
    for name, a in found["multiview"].items():
        row(name, f"{a['needed']:,}", f"{a['read']:,}", f"{a['read'] / a['needed']:.4f}")
    heading("opening", "views", "opened, s", "first batch, s", "peak of the process, MB", "of a worker, MB")
    for name, a in found["large"].items():
        sizes = (f"{a[peak]:,.0f}" for peak in ("own_mb", "worker_mb"))
        row(name, f"{a['views']:,}", f"{a['opened']:.2f}", f"{a['first']:.2f}", *sizes)
