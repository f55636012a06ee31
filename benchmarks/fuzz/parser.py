"""Coverage-guided fuzzing of the frame parser; a program, since libFuzzer ends its process.

    python -m benchmarks.fuzz.parser BUNDLE CORPUS [options of libFuzzer]

Every input must either give a request that is encoded to a frame of the same meaning, or raise a
FrameError of a known code; anything else ends the run with an error. The mutator alternates between
libFuzzer's own, which works on bytes, and the project's, which keeps the outer framing so that the
contents are fuzzed, too.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["del_core"]):
    from del_core.bundle import RESERVED_VARIANT, load_bundle
    from del_core.errors import ERROR_STATUS
    from del_core.wire import FrameError, Limits, Shape, decode_frame, encode_frame

from benchmarks.fuzz.mutations import mutate


def main() -> None:
    """Fuzz until libFuzzer ends."""
    bundle = load_bundle(Path(sys.argv[1]))
    shapes: dict[str, Shape | None] = {name: Shape.from_mechanism(bundle.mechanism(name)) for name in bundle.variants}
    shapes[RESERVED_VARIANT] = None
    limits = Limits(
        max_frame_bytes=1 << 20,
        max_prompt_tokens=511,
        max_output_tokens=511,
        vocabulary_size=bundle.manifest.base_model.vocabulary_size,
    )

    def one(data: bytes) -> None:
        try:
            request = decode_frame(data, shapes, limits, fingerprint=bundle.fingerprint)
        except FrameError as error:
            if ERROR_STATUS[error.code] >= 500 or len(str(error)) > 4096:
                raise AssertionError(f"{error.code}: {len(str(error))} characters") from error
            return
        shape = shapes[request.variant]
        again = encode_frame(request, bits=shape.bits if shape else 1)
        decoded = decode_frame(again, shapes, limits, fingerprint=bundle.fingerprint)
        assert encode_frame(decoded, bits=shape.bits if shape else 1) == again

    def mutator(data: bytes, largest: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, largest))
        return mutate(data, random.Random(seed))[:largest]

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
