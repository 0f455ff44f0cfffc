"""For torch.hub: `torch.hub.load(repository, "hcnn", dataset="cifar10")`."""

dependencies = ["torch", "safetensors", "numpy", "filelock", "tqdm"]


def hcnn(dataset="cifar10", variant="hcnn", pretrained=True, **sizes):
    """The trained network that `hcnn.load` finds for a data set and a variant ("hcnn" or "hcnn-plus").

    With pretrained=False a fresh network as the paper describes it, where `sizes` such as K=8, Q=16 are changed.
    """
    from hcnn import HCNN, Architecture, load

    if pretrained and sizes:
        raise ValueError(f"{next(iter(sizes))} is that of the trained network; give sizes with pretrained=False")
    return load(f"{dataset}-{variant}") if pretrained else HCNN(Architecture.preset(dataset, variant, **sizes))
