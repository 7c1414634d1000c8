"""An earlier name of `mstdistill.data.sources.own`, kept for programs that import it."""

from .sources.own import OwnData as OwnData
from .sources.own import open_own as open_own
