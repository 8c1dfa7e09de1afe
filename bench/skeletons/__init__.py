"""Full-size models as headers without weights.

`models` and `configs/` say in data which models there are; `layers` turns a config into modules, in the model's own terms;
`storage` turns a module into the tensors that it is stored as; `files` deals the tensors to files and writes those. A model
is a config and a line in `models`, an architecture a function in `layers`, a quantisation a function in `storage`.
"""
