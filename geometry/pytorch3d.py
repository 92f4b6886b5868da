"""Renders meshes with PyTorch3D's rasteriser, which made published normal maps.

It serves as a reference: on a CPU it is thousands of times slower than Embree.
"""

from collections.abc import Iterator

import numpy as np
import torch

from geometry.cameras import Cameras
from geometry.meshes import Mesh, VisibleSurface


class PyTorch3DCaster:
    """A mesh that PyTorch3D rasterises on the device the cameras are on; intrinsics without skew."""

    def __init__(self, mesh: Mesh) -> None:
        try:
            from pytorch3d.structures import Meshes  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                "mesh backend 'pytorch3d' needs the package pytorch3d, which cannot be imported here; "
                "build it from source or use 'embree'"
            ) from error
        self.mesh = mesh
        self._meshes = Meshes([torch.tensor(mesh.vertices)], [torch.tensor(mesh.faces, dtype=torch.int64)])

    def cast(self, cameras: Cameras, resolution: int) -> Iterator[VisibleSurface]:
        """Yield the surface that each camera sees, one view at a time."""
        for view in range(len(cameras)):
            yield self._cast_view(cameras[view : view + 1], resolution)

    def _cast_view(self, camera: Cameras, resolution: int) -> VisibleSurface:
        from pytorch3d.renderer import MeshRasterizer, RasterizationSettings  # pyright: ignore[reportMissingImports]
        from pytorch3d.utils import cameras_from_opencv_projection  # pyright: ignore[reportMissingImports]

        w2c, device = camera.w2c, camera.c2w.device
        size = torch.tensor([[resolution, resolution]], device=device)
        pinhole = cameras_from_opencv_projection(w2c[:, :3, :3], w2c[:, :3, 3], camera.pixel_K(resolution), size)
        # No bins, because the faster coarse pass drops faces when a bin is full. No culling, so an open mesh shows its inside.
        settings = RasterizationSettings(
            image_size=resolution, blur_radius=0.0, faces_per_pixel=1, bin_size=0, perspective_correct=True
        )
        fragments = MeshRasterizer(pinhole, settings)(self._meshes.to(device))
        face = fragments.pix_to_face[0, ..., 0].cpu().numpy().astype(np.int32)
        seen = face >= 0
        depth = fragments.zbuf[0, ..., 0].cpu().numpy()
        barycentric = fragments.bary_coords[0, ..., 0, :].cpu().numpy().transpose(2, 0, 1)
        return VisibleSurface(
            mesh=self.mesh,
            depth=np.where(seen, depth, np.float32(0)),
            face=face,
            barycentric=np.where(seen, barycentric, np.float32(0)),
            view_rotation=camera.view_rotation[0].float().cpu().numpy(),
        )
