"""The methods of `--method`, each one small file behind `protocol.Method`."""

from switchlora.methods.full import FullMethod
from switchlora.methods.lora import LoraMethod
from switchlora.methods.protocol import LOW_RANK, SWITCHING, Method
from switchlora.methods.switchlora import SwitchLoraMethod

__all__ = ["LOW_RANK", "METHODS", "SWITCHING", "Method"]

METHODS: dict[str, Method] = {method.name: method for method in (SwitchLoraMethod(), LoraMethod(), FullMethod())}
