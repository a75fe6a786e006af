"""Shared objects of the image: numpy with its BLAS."""

import numpy

matrix = numpy.arange(250_000, dtype=float).reshape(500, 500) + 1000 * numpy.eye(500)
solved = numpy.linalg.solve(matrix, matrix @ numpy.ones(500))
assert numpy.allclose(solved, 1)
print("arrays", int(round(solved.sum())))
