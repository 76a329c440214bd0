"""Generate a response to every item of the IMHI benchmark.  ``python IMHI.py --help`` tells the flags."""

from imhi.commands import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("generate"))
