"""Muon whose hidden matrices do not count in the norm that is clipped, as in `switchlora-polar`."""

from pathlib import Path
from runpy import run_path

from switchlora.methods.muon import MuonMethod

METHOD = run_path(str(Path(__file__).with_name("apart.py")))["apart"](MuonMethod, "muon-apart")
