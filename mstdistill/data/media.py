"""An earlier name of `mstdistill.data.decode`, kept for programs that import it."""

from .decode.picture import decode_image as decode_image
from .decode.picture import pixels as pixels
from .decode.sound import decode_audio as decode_audio
from .decode.value import decode as decode
from .decode.value import kind_of as kind_of
