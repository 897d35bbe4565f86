"""The methods of `--method`, each one small file behind `protocol.Method`."""

from switchlora.methods.apollo import ApolloMethod, ApolloMiniMethod
from switchlora.methods.fira import FiraMethod
from switchlora.methods.full import FullMethod
from switchlora.methods.galore import GaLoreMethod
from switchlora.methods.lora import LoraMethod
from switchlora.methods.muon import MuonMethod
from switchlora.methods.protocol import OF_METHODS, SWITCHING, Method
from switchlora.methods.racs import RacsMethod
from switchlora.methods.relora import ReLoraMethod
from switchlora.methods.stable_spam import StableSpamMethod
from switchlora.methods.switchlora import SwitchLoraMethod
from switchlora.methods.switchlora_muon import SwitchLoraMuonMethod

__all__ = ["METHODS", "OF_METHODS", "SWITCHING", "Method"]

_ALL: tuple[Method, ...] = (
    SwitchLoraMethod(), SwitchLoraMuonMethod(), LoraMethod(), ReLoraMethod(), FullMethod(), MuonMethod(),
    ApolloMethod(), ApolloMiniMethod(), GaLoreMethod(), FiraMethod(), StableSpamMethod(), RacsMethod(),
)  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
