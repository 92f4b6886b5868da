"""The Chromium of this machine, which tests of pages run."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NOT_THERE = "no Chromium or Chrome to open the page with"
