"""The guide's scripts, and the command that each one runs."""

DOORS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "demo.py": "demo",
    "demo_simple.py": "demo",
    "run_training.py": "run",
    "test_setup.py": "doctor",
    "scripts/download_data.py": "data download",
    "scripts/preprocess.py": "data prepare",
}
