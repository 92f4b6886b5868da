"""Copies of other people's multiview sets, read as held-out people: NeRSemble, FaceScape and RenderMe-360."""
