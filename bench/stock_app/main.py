"""Stock MONAI Label with nothing added: the other side of the serving benchmark."""

from collections.abc import Mapping

from monailabel.interfaces.app import MONAILabelApp


class Stock(MONAILabelApp):
    """MONAI Label's own datastore, endpoints and `random` strategy."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        super().__init__(app_dir, studies, dict(conf), "stock", labels=["structure_1", "structure_2", "structure_3"])
