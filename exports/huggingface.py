"""Hugging Face: the unchanged shards, with a README.md that `datasets.load_dataset` and the Hub understand."""

import json
from collections.abc import Iterator
from typing import Any

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import Plan

SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
"""The Hub's names of sizes, by the number of samples below which they hold."""

BIASES = """\
* Every person here is synthetic: a seed made them, no photograph is part of the data. A generator that learnt from photos
  may still make a head that resembles a real person, and repeats the balance of age, sex, skin and hair of its photos.
* Scores of identity come from a face recogniser (ArcFace), which sees faces: views from behind are never judged by it,
  and it is less sure of profiles, dark pictures and groups that its own training data had few of. A filter that uses it
  inherits that.
* Scores of the back come from CLIP's idea of "back of human head"; long hair, hats and bald heads are judged unevenly.
* Where the source is `procedural`, heads are made of simple parts and resemble no population."""


def huggingface(copy: Dataset) -> Iterator[tuple[str, bytes]]:
    """The dataset card."""
    yield "README.md", f"---\n{_header(copy)}---\n\n{_body(copy)}".encode()


def totals(copy: Dataset) -> tuple[int, int, int]:
    """Number of identities with views, number of views, and bytes of the tars."""
    records = [copy.done(shard) for shard in copy.committed()]
    heads = sum(record["outcomes"][schema.KEPT] for record in records)
    return heads, sum(r["views"] for r in records), sum(r["files"][".tar"]["size"] for r in records)


def filters(plan: Plan) -> list[str]:
    """The filters that a dataset went through, from the latest pack to the first; none if it was not filtered."""
    lines, levels = [], ("identities", "views")
    for selection in _selections(plan):
        kept = (f"{selection[level]['kept']} of {selection[level]['judged']} {level}" for level in levels)
        lines.append(f"selection {selection['name']} (sha256 {selection['sha256']}) keeps {' and '.join(kept)}")
        dropped = ((level, *item) for level in levels for item in selection[level]["dropped"].items())
        lines += [f"{count} {level} dropped: {reason}" for level, reason, count in dropped]
    if rejection := plan.settings.get("rejection"):
        lines.append(
            f"policy {rejection['policy']['name']} rejected heads by {len(rejection['azimuth'])} small views, before the rest"
        )
    return lines


def policies(plan: Plan) -> list[dict[str, Any]]:
    """The policies of those filters, in the same order."""
    return [selection["policy"] for selection in _selections(plan) if selection["policy"]]


def _selections(plan: Plan) -> Iterator[dict[str, Any]]:
    """The records of the selections in a plan, from the latest pack to the first."""
    packed = plan.packed
    while packed:
        if packed["selection"]:
            yield packed["selection"]
        packed = packed["before"]


def _header(copy: Dataset) -> str:
    """The YAML header; JSON strings are YAML strings."""
    _, views, _ = totals(copy)
    size = next((name for limit, name in SIZES.items() if views < limit), "10M<n<100M")
    return f"""\
pretty_name: {json.dumps(f"Synthetic multiview heads ({copy.plan.source['name']}, {copy.plan.rig['id']})")}
license: other
license_name: {json.dumps(str(copy.plan.source.get("licence", "unknown")))}
task_categories: [image-to-3d, image-to-image]
tags: [synthetic, multiview, heads, normals, webdataset]
size_categories: ["{size}"]
configs:
- config_name: default
  data_files:
  - split: train
    path: shards/*.tar
"""


def _body(copy: Dataset) -> str:
    plan = copy.plan
    heads, views, size = totals(copy)
    members = ", ".join(f"`{extension}`" for extension in plan.members.values())
    judged = "\n".join(f"* {line}" for line in filters(plan)) or "No selection was applied."
    policy = "".join(f"\n```json\n{json.dumps(p, indent=2)}\n```\n" for p in policies(plan))
    lineage = {"source": plan.source, "seed": plan.seed, "settings": plan.settings, "fingerprint": plan.fingerprint}
    conventions = "\n".join(f"* {name}: {text}" for name, text in plan.settings.get("conventions", {}).items())
    return f"""\
# Synthetic multiview heads

{heads} synthetic people, {views} views of {plan.resolution} x {plan.resolution} pixels, {size / 1e9:.2f} GB.

One sample is one view: {members}. Its key is `identity_vVIEW`, and the views of a person lie together. The tables
`shards/*.views.parquet` hold every camera and where each member lies in its tar; `shards/*.identities.parquet` what is
known of each person. View rig: {plan.rig["id"]}.

```python
datasets.load_dataset("path/of/this/folder", split="train", streaming=True)
```

## Conventions

{conventions}

## Licence

{plan.source.get("licence", "unknown")}

## Filters

{judged}
{policy}
## Known biases and limits

{BIASES}

## Lineage

```json
{json.dumps(lineage, indent=2, sort_keys=True)}
```
"""
