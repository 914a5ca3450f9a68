"""How a module is split over ranks. One file per axis."""
