// The CPU kernels as one Python module, in one translation unit: it compiles in a fraction of the
// time of several. Contracts are in the headers that define them.
#include <torch/csrc/utils/pybind.h>

#include "combine.hpp"
#include "linear.hpp"
#include "nearest.hpp"
#include "page_rows.hpp"
#include "paged_decode.hpp"
#include "prefill.hpp"
#include "products.hpp"
#include "rows.hpp"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("paged_decode", &paged_decode::run);
  module.def("product", &products::product);
  module.def("library_multiplies", &products::library_multiplies);
  module.def("linear", &linear::run);
  module.def("prefill", &prefill::run);
  module.def("nearest", &nearest::run);
  module.def("combine", &combine::run);
  module.def("rms_norm", &rows::rms_norm);
  module.def("rotate", &rows::rotate);
  module.def("write_rows", &page_rows::write);
  module.def("read_rows", &page_rows::read);
}
