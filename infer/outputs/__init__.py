"""What is written of a turn: pictures, films, a page, cameras, shapes."""
