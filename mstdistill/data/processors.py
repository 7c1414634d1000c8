"""An earlier name of `mstdistill.data.decode.processors`, kept for programs that import it."""

from .decode.processors import Port as Port
from .decode.processors import Processing as Processing
