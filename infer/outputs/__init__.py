"""Outputs of views: pictures, films, a page, cameras and surfaces."""
