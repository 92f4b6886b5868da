"""Faces in pictures: detection, landmarks, alignment, embedding, matte and pose."""
