"""Score generated responses against the gold responses.  ``python score.py --help`` tells the flags."""

from imhi.commands import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("score"))
