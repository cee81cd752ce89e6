from lwsrun_sglang_cpu import stand_in

stand_in(__name__)
