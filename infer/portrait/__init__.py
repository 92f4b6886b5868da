"""From a photo to what a model reads: the file, the face, its pose, the cut, the background."""
