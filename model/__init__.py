"""The denoiser: networks, noise, training, weights and inference. Knows nothing of storage, Ray or Prefect.

```python
from model import Denoiser
clean = Denoiser.load("photo")(noisy)      # (H, W, 3) or (H, W), uint8 or uint16, sRGB -> the same
```
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.denoiser import Denoiser

__all__ = ["Denoiser"]


def __getattr__(name: str) -> Any:  # Any: PEP 562 cannot say more
    """Import torch only when a denoiser is asked for, so that planning and `--help` never wait for it."""
    if name == "Denoiser":
        from model.denoiser import Denoiser

        return Denoiser
    raise AttributeError(f"module 'model' has no attribute {name!r}")
