"""Sessions of onnxruntime for model files that the user brings."""

from typing import Any

from jobs.devices import gpu_index
from manifests.errors import UserError

CUDA = "CUDAExecutionProvider"


def onnx_session(file: str, device: str) -> Any:
    """Open an ONNX file with as many threads as torch may use in this process.

    Raises:
        UserError: the file does not run on this device, or is not an ONNX model.
    """
    import onnxruntime
    import torch

    if device != "cpu" and CUDA not in onnxruntime.get_available_providers():
        raise UserError(f"--device is {device}, but this onnxruntime runs on the CPU only; install onnxruntime-gpu")
    # By default a session takes every core, whatever number of threads a worker was given.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=onnx_providers(device))
    except Exception as error:  # onnxruntime's own exceptions share no base but this one
        raise UserError(f"{file} is not an ONNX model that runs here: {str(error).splitlines()[0][:160]}") from error
    # Where the CUDA libraries do not load, onnxruntime takes the CPU and only logs it.
    if device != "cpu" and CUDA not in session.get_providers():
        raise UserError(f"--device is {device}, but onnxruntime cannot use it: its CUDA libraries do not load")
    return session


def onnx_providers(device: str) -> list[Any]:
    """The providers of onnxruntime for cpu, cuda or cuda:N, in the order in which it tries them."""
    return [*([] if device == "cpu" else [(CUDA, {"device_id": gpu_index(device)})]), "CPUExecutionProvider"]
