"""Which code this is, for the lineage of models."""

import subprocess
from functools import lru_cache
from pathlib import Path

from hardloop import __version__


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit of the checkout this runs from, "-dirty" where files were changed; the version where there is none."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # An installed package inside somebody else's repository must not borrow that repository's commit.
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return f"hardloop {__version__}"
        head = git("rev-parse", "HEAD")
        return head + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.TimeoutExpired):
        return f"hardloop {__version__}"
