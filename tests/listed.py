"""The readers as functions that return lists, so that they raise their errors at once."""

from functools import wraps

from geoalign_hf.readers import captions, coco, dota, voc, yolo


def _list(read):
    @wraps(read)
    def read_list(*arguments, **options):
        return list(read(*arguments, **options))

    return read_list


read_captions, read_coco, read_dota = map(_list, (captions.read_captions, coco.read_coco, dota.read_dota))
read_voc, read_yolo = map(_list, (voc.read_voc, yolo.read_yolo))
