"""The methods of `--method`, each one small file behind `protocol.Method`."""

from switchlora.methods.apollo import ApolloMethod, ApolloMiniMethod
from switchlora.methods.fira import FiraMethod
from switchlora.methods.full import FullMethod
from switchlora.methods.galore import GaLoreMethod
from switchlora.methods.lora import LoraMethod
from switchlora.methods.muon import MuonMethod
from switchlora.methods.own import is_file, own_method
from switchlora.methods.protocol import OF_METHODS, SWITCHING, Method
from switchlora.methods.racs import RacsMethod
from switchlora.methods.relora import ReLoraMethod
from switchlora.methods.stable_spam import StableSpamMethod
from switchlora.methods.switchlora import SwitchLoraMethod
from switchlora.methods.switchlora_muon import SwitchLoraMuonMethod
from switchlora.methods.switchlora_polar import SwitchLoraPolarMethod

__all__ = ["METHODS", "OF_METHODS", "SWITCHING", "Method", "is_file", "method_named"]

_ALL: tuple[Method, ...] = (
    SwitchLoraMethod(), SwitchLoraMuonMethod(), SwitchLoraPolarMethod(), LoraMethod(), ReLoraMethod(), FullMethod(),
    MuonMethod(), ApolloMethod(), ApolloMiniMethod(), GaLoreMethod(), FiraMethod(), StableSpamMethod(), RacsMethod(),
)  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """The method of a name of `METHODS`, or of the path of a file (see `own`).

    Raises:
        UserError: as `own.own_method`.
    """
    return own_method(name) if is_file(name) else METHODS[name]
