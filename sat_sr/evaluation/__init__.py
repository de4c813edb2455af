"""How good a network is: figures, tables and sheets of pictures, with plain interpolation beside it."""
