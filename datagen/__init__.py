"""Makes datasets: head sources, view rigs, meshing, and what one unit of generation is."""
