"""What one server takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one server takes; everything beyond is refused with a 4xx.

    Attributes:
        max_bytes: of one request's body.
        max_pixels: of one picture, decoded.
        max_files: of one request.
        queue: pictures being read, decoded, waiting and predicted; more get 429.
        held_bytes: bodies held at the same time, all requests together; more get 429.
        batch: most pictures predicted together.
        wait: seconds a picture waits for company.
        timeout: seconds for one request, the reading of its body included.
    """

    max_bytes: int = 16 * 2**20
    max_pixels: int = 50_000_000
    max_files: int = 32
    queue: int = 256
    held_bytes: int = 256 * 2**20
    batch: int = 16
    wait: float = 0.002
    timeout: float = 30.0
