"""What Python runs first in a process of `pretend_gpu.environment`."""

from tests.accelerator.pretend_gpu.device import install

install()
