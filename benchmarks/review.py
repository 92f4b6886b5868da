"""The review page on a large dataset: python benchmarks/review.py [IDENTITIES]; needs chromium.

Score tables of 10,000 identities of 125 views by default, without pictures. It prints the time until the page can be used, the
bytes that travel, the time from a change of a limit to the painted counts, memory, and what becomes of 200 verdicts while the
server is killed and started again.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from playwright.sync_api import Page, sync_playwright
from selection import POLICY, write_tables

from filters.config import SelectConfig
from filters.decisions import read_decisions
from filters.select import select
from manifests.storage import Storage

CHANGES, VERDICTS = 60, 200

MOVE = """async (value) => {
  const number = document.querySelector(".rule:nth-of-type(2) input[type=number][aria-label^=max]");
  const painted = new Promise((done) => {
    const counts = document.querySelector("#counts");
    const watch = new MutationObserver(() => {
      watch.disconnect();
      requestAnimationFrame(() => setTimeout(() => done(performance.now())));
    });
    watch.observe(counts, { childList: true });
  });
  const begun = performance.now();
  number.value = value;
  number.dispatchEvent(new Event("change"));
  return (await painted) - begun;
}"""


def serve(folder: str, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """A server in its own process, and its address."""
    command = [sys.executable, "spinset.py", "review", folder, "--no-open", "--who", "ann", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process, process.stdout.readline().split()[-1]


def rss(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def renderer(browser: psutil.Process) -> float:
    """Memory of the largest page process."""
    return max(rss(p) for p in browser.children(recursive=True) if "--type=renderer" in p.cmdline())


def limits(page: Page) -> list[float]:
    """Milliseconds from a change of the limit of a rule on all views to the painted counts."""
    return [page.evaluate(MOVE, 0.9 + 0.0015 * k) for k in range(CHANGES)]


def verdicts(
    page: Page, folder: str, server: subprocess.Popen[str], port: int
) -> tuple[list[float], subprocess.Popen[str]]:
    """Milliseconds per verdict by key; the server is killed after half of them and started again."""
    page.select_option("#kind", "random")
    page.wait_for_timeout(3000)
    page.click("#grid figure")
    seconds = []
    for k in range(VERDICTS):
        if k == VERDICTS // 2:
            server.kill()
            server.wait()
        begun = time.perf_counter()
        page.keyboard.press("d" if k % 2 else "k")
        page.evaluate("0")
        seconds.append(1e3 * (time.perf_counter() - begun))
    server, address = serve(folder, port)
    # The new server has a new token; the page of the old one keeps its queue in the browser.
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    page.wait_for_function("() => !document.querySelector('#queue').textContent.includes('to send')")
    page.wait_for_timeout(1000)
    return seconds, server


def main() -> None:
    identities = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder), identities)
        policy = Path(folder) / "policy.json"
        policy.write_text(json.dumps(POLICY))
        select(SelectConfig(folder, policy=str(policy)))
        begun = time.perf_counter()
        server, address = serve(folder)
        print(f"{identities:,} identities of 125 views; the server is up after {time.perf_counter() - begun:.1f} s")
        with sync_playwright() as play:
            arguments = ["--no-sandbox", "--disable-gpu"]
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
            chromium = next(p for p in psutil.Process().children(recursive=True) if "chrom" in p.name())
            page = browser.new_page()
            page.context.set_default_timeout(120_000)
            sizes: list[int] = []
            network = page.context.new_cdp_session(page)
            network.send("Network.enable")
            network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
            page.goto(address)
            page.wait_for_selector("html[data-ready]")
            ready = page.get_attribute("html", "data-ready")
            print(f"first interactive after {ready} ms, {sum(sizes) / 1e6:.1f} MB transferred")
            page.wait_for_timeout(3000)
            changed = np.percentile(limits(page), [50, 95])
            print(f"limit to painted counts: median {changed[0]:.0f} ms, 95 % below {changed[1]:.0f} ms")
            print(f"memory: page {renderer(chromium):.0f} MB, server {rss(psutil.Process(server.pid)):.0f} MB")
            taken, server = verdicts(page, folder, server, int(address.split(":")[2].split("/")[0]))
            made, _ = read_decisions(Storage(folder))
            print(f"{VERDICTS} verdicts: {len(made)} recorded, median {np.median(taken):.0f} ms, 95 % below "
                  f"{np.percentile(taken, 95):.0f} ms each, the server killed midway")  # fmt: skip
            browser.close()
        server.kill()


if __name__ == "__main__":
    main()
