"""`stateless_muon` whose hidden matrices do not count in the norm that is clipped, as in `switchlora-polar`."""

from pathlib import Path
from runpy import run_path

from switchlora.methods.own import own_method

StatelessMuon = type(own_method(str(Path(__file__).with_name("stateless_muon.py"))))
METHOD = run_path(str(Path(__file__).with_name("apart.py")))["apart"](StatelessMuon, "stateless-apart")
