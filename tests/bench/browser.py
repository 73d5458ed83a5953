"""A browser for tests of pages: where there is none, tests are skipped with the reason, or fail where one must be."""

import os
import shutil

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 200_000  # on a busy machine a page of five megabytes takes its time


def _skip(reason):
    if os.environ.get("AMED_BROWSER_REQUIRED") == "1":
        pytest.fail(f"AMED_BROWSER_REQUIRED is set, but {reason}")
    pytest.skip(reason)


def launched():
    """Yield a browser; skip where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip("playwright is not installed; it is in the extra: pip install -e '.[browser]'")
    program = os.environ.get("AMED_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        _skip(f"no browser was found ({', '.join(NAMES)}); install one, or name one in AMED_BROWSER")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=arguments, timeout=PATIENCE_MS)
        yield browser
        browser.close()
