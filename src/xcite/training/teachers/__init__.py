"""Teachers: whoever answers for the pictures of a batch while a student learns.

A `live` teacher is an engine (RegNet or XCiT, always in evaluation mode) or an ONNX or OpenVINO
file. It sees the student's own input, augmented, erased and mixed, in its own normalisation and
size. A `cached` teacher repeats answers that were computed once (`computing`).

The pictures of a batch, and how they are mixed, are a pure function of (seed, epoch, index). So a
teacher's answer is one too, whoever gives it and whenever.
"""
