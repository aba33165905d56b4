"""Configurations, runs and their folders, comparisons: the layer that serves people and scripts."""

from fedsparse.experiment.compare import Row, compare, rows
from fedsparse.experiment.config import Config, load_config
from fedsparse.experiment.over_seeds import Group, Spread, over_seeds
from fedsparse.experiment.records import read_runs
from fedsparse.experiment.report import write_report
from fedsparse.experiment.run import resume, resume_variants, run, run_variants
from fedsparse.experiment.session import Result

__all__ = [
    "Config",
    "Group",
    "Result",
    "Row",
    "Spread",
    "compare",
    "load_config",
    "over_seeds",
    "read_runs",
    "resume",
    "resume_variants",
    "rows",
    "run",
    "run_variants",
    "write_report",
]
