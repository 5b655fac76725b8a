"""UniKPT: reads thirteen keypoint data sets, and any file in COCO's layout, into one schema.

python -m training.unikpt --root DATA --index unikpt.jsonl --overlay pictures
"""

from training.unikpt.schema import AnnotationFileError, ImageError, InstanceRecord, Problem, Record, Report, UniKPTError

__all__ = ["AnnotationFileError", "ImageError", "InstanceRecord", "Problem", "Record", "Report", "UniKPTError"]
