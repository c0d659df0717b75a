#pragma once
#include "kernels/accumulate/accumulate.h"
#include "kernels/common/elementwise.h"

namespace lc::kernels {

template <class T>
void accumulate_naive(const Accumulate& args) {
    for_each_element<const T, T>({args.source, args.target}, [](const T& source, T& target) { target += source; });
}

}  // namespace lc::kernels
