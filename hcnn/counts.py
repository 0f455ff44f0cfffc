"""What follows from the shapes alone, without torch: numbers of parameters, multiply-adds, exact translations."""

from math import prod


def parameters(a):
    """Numbers of parameters of an Architecture, as a dict.

    filters: the paper's count (HCNN: the filters w; HCNN(+): h and g; j = 1, 2: plain filters in both).
    trained_filters: what gradient descent moves (h and g in both variants). normalisation, bias: scales and shifts,
    biases (of the linear head too). trained: all trainable numbers. effective: `effective_filters` over the layers.
    """
    layers = a.layers
    trained_filters = sum(layer.factorised_filter for layer in layers)
    normalisation = sum(2 * layer.filters for layer in layers if layer.j <= 2 or a.output_norm)
    normalisation += sum(2 * layer.Q for layer in layers if layer.Q)
    bias = 0 if a.output_norm else sum(layer.filters for layer in layers if layer.j >= 3)
    head = (a.K + 1) * a.num_classes if a.head == "linear" else 0
    return dict(
        filters=trained_filters if a.variant == "hcnn-plus" else sum(layer.full_filter for layer in layers),
        trained_filters=trained_filters,
        normalisation=normalisation,
        bias=bias,
        head=head,
        trained=trained_filters + normalisation + bias + head,
        effective=sum(effective_filters(a, layer) for layer in layers),
    )


def effective_filters(a, layer):
    """Degrees of freedom of one layer's filters: taps that never touch the grid and the rank limit left out.

    For F filters on T live taps, w is a (spatial taps) x (F T) matrix of rank r = min(Q, spatial taps), and such
    matrices have r (spatial taps + F T - r) degrees of freedom (r at most F T). HCNN(+): h and the live part of g.
    """
    if layer.j == 1:
        return layer.full_filter
    numbers = layer.filters * prod(map(layer.along.live, layer.grid, layer.support))
    space = layer.spatial_support**2
    if layer.Q is None:
        return space * numbers
    if a.variant == "hcnn-plus":
        return layer.Q * (space + numbers)
    r = min(layer.Q, space, numbers)
    return r * (space + numbers - r)


def multiply_adds(a):
    """Multiplications of one image's forward pass in the convolutions of an Architecture, taps outside left out.

    h_g: x * h_q for every q, at all positions where its statistics are taken, then g, equation (8). w: one
    convolution with the filter w, which is all that HCNN computes once h, normalisation and g are folded; None for
    HCNN(+), which cannot be folded. Returns {"h_g": int, "w": int or None}; without factorisation the two are equal.
    """
    separable = folded = 0
    for layer in a.layers:
        taps = list(map(layer.along.pairs, layer.grid, layer.support)) or [a.in_channels]
        filters = layer.filters * prod(taps)
        w = filters * prod(layer.space.pairs(n, layer.spatial_support) for n in layer.size)
        folded += w
        if layer.Q:
            everywhere = layer.space.replace(stride=1) if a.statistics == "all" else layer.space
            h = prod(layer.grid) * prod(everywhere.pairs(n, layer.spatial_support) for n in layer.size)
            separable += layer.Q * (h + filters * prod(layer.out_size))
        else:
            separable += w
    return {"h_g": separable, "w": None if a.variant == "hcnn-plus" else folded}


def carried(a, j, shift):
    """What a translation of x_j along (v_{j-2}, v_{j-1}, v_j, u) does to later layers: yields (j, shift), ...

    Covariance with subsampling, for periodic boundaries: each W halves the attributes that it convolves, averages the
    oldest, and its new attribute does not move. Ends at x_{J-1}, or where a translation would not be a whole number.
    """
    yield j, shift
    stride = a.layers[j].stride if j < a.J - 1 else 0  # of W_{j+1}
    if stride and shift[1] % 2 == shift[2] % 2 == shift[3] % stride == 0:
        yield from carried(a, j + 1, (shift[1] // 2, shift[2] // 2, 0, shift[3] // stride))


def exact_translation(a, j, axis):
    """Proposition 3.1 with subsampling: the smallest translation of x_j, j >= 3, that does not change the class scores.

    axis: 0..3 for v_{j-2}, v_{j-1}, v_j, u; periodic boundaries. Returns a power of 2, None where the axis is the
    class.
    """
    for tau in (2**i for i in range(a.J)):
        last, shift = list(carried(a, j, tuple(tau * (i == axis) for i in range(4))))[-1]
        if last == a.J - 1 and not shift[2]:
            return tau
    return None
