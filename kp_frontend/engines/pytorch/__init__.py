"""Networks in PyTorch: our ONNX files as they are, on a CPU or an NVIDIA GPU. The only room here that needs PyTorch."""

from __future__ import annotations

from kp_frontend.engines.base import Engine, Request, Unavailable


def load(request: Request) -> Engine:
    """Open an ONNX file; Unavailable without PyTorch or onnx, or where an operator is not known."""
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed: pip install 'kp_frontend[pytorch]'") from None
    from kp_frontend.engines.pytorch.engine import open_file

    return open_file(request)


def has_gpu() -> bool:
    """Whether PyTorch, which is installed, runs networks on a GPU here."""
    import torch

    return torch.cuda.is_available()
