"""What one serving process takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one serving process takes; everything beyond is refused with a 4xx.

    Attributes:
        max_bytes: of one request's body, as sent and decompressed.
        max_pixels: of one picture, decoded.
        max_request_pixels: of one request's pictures together.
        max_files: of one request.
        decoders: processes that decode ordinary pictures, one more takes heavy ones; None chooses
            by the number of cores.
        decode_seconds: processor time for decoding one picture.
        queue: pictures being decoded, waiting and predicted; more get 429.
        held_bytes: bodies held at the same time, all requests together; more get 429.
        batch: most pictures predicted together.
        wait: seconds a picture waits for company.
        timeout: seconds for one request, the reading of its body included.
        silence: seconds for a request's head, between requests on a connection, and for a pause
            in a body.
        connections: open at the same time; for a new one beyond that the one that has waited for
            its client longest is closed.
    """

    max_bytes: int = 16 * 2**20
    max_pixels: int = 50_000_000
    max_request_pixels: int = 200_000_000
    max_files: int = 32
    decoders: int | None = None
    decode_seconds: float = 10.0
    queue: int = 256
    held_bytes: int = 256 * 2**20
    batch: int = 16
    wait: float = 0.002
    timeout: float = 30.0
    silence: float = 10.0
    connections: int = 1024
