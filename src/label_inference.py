"""Label a folder of responses with the published classifiers.  ``python label_inference.py --help`` tells the flags."""

from imhi.commands import run_script

if __name__ == "__main__":
    raise SystemExit(run_script("label"))
