"""Evidence that a runtime computes what the reference computes.

verify             the whole proof: layer by layer, end to end, golden outputs
reference          the model.pt that a bundle is held against
torch_reference    that model in float32 and float64, and with jittered roundings
parity             end to end: reference, noise floor and runtime on the same images
noise_floor        how far the reference's own legitimate results are from each other
distance           how far two programs' images are apart
parity_report      what was found, and what decides whether that is a yes
parity_text        the same for people: one line, tables, markdown
layers             every layer's codes, teacher-forced (teacher_forcing cuts the graph, forced_engine builds it)
layer_parity       one layer's flips, and whether rounding explains them (ties: how far values are from a tie)
golden             golden outputs of exact models (graph_hashes: whose numbers are in a graph; bundle.golden: the file)
evaluation         PSNR and SSIM over a benchmark set (metrics: of one image; upscalers: what can be measured)
stress_images      images on which programs differ sooner than on photos
"""
