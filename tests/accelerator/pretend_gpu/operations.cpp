// A pretend GPU for machines without one: tensors on cuda:0 whose numbers lie in host memory and whose operations run
// on the CPU. Preloaded before torch (LD_PRELOAD), for torch asks for its devices once; `__init__.py` is the Python side.
//
// What it is good for: that all tensors of an operation are on the device, or it raises; how often the host would wait
// for the device, and how many operations are launched, which it counts; that a stream uses nothing that another one
// may not have finished, which it records as a hazard; bytes that are allocated, and their peak. Fresh memory is full
// of NaN, and a copy to pinned memory arrives as late as it may: when somebody waits for it.
//
// What it says nothing of: time, the numerics of CUDA's kernels, memory that they take inside, several devices.

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "device.h"

using Sizes = c10::SymIntArrayRef;

namespace {

Tensor host(const Tensor& t) {  // the same memory as a CPU tensor
  if (!t.defined() || !t.is_cuda()) return t;
  auto options = t.options().device(kCPU).requires_grad(false);
  if (t.numel() == 0) return at::empty(t.sizes(), options);  // of its own, for an operation may enlarge it
  Tensor kept = t, same = at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(), [kept](void*) {}, options);
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) same.unsafeGetTensorImpl()->set_wrapped_number(true);
  return same;
}

Tensor on_gpu(const Tensor& t) {  // a copy of a CPU tensor
  if (!t.defined() || !t.is_cpu()) return t;
  Tensor made = at::detail::empty_strided_generic(t.sizes(), t.strides(), &device_memory, KEYS, t.scalar_type());
  host(made).copy_(t);
  return made;
}

// A value with other tensors in it.
template <typename Replace>
c10::IValue with_tensors(const c10::IValue& value, Replace replace) {
  if (value.isTensor()) return replace(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> all;
    for (const Tensor& t : value.toTensorVector()) all.push_back(replace(t));
    return all;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> all;
    for (const std::optional<Tensor>& t : value.toOptionalTensorList().vec()) all.push_back(t ? std::optional<Tensor>(replace(*t)) : t);
    return all;
  }
  return value.isDevice() ? c10::IValue(Device(kCPU)) : value;
}

// Any operation: check the devices, run it on the host, and lay what it made on the device. What it changes is changed
// there, for a tensor on the device and its double on the host share their memory. A CPU tensor of no dimensions is let
// through everywhere, as torch does in most operations.
void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  auto popped = [&](size_t num) {
    auto values = torch::jit::last(stack, num).vec();
    torch::jit::drop(stack, num);
    return values;
  };
  std::lock_guard<std::recursive_mutex> lock(mutex);
  launches[name]++;
  given[stream]++;

  std::vector<std::pair<Tensor, Tensor>> both;  // on the device, and its double
  const auto arguments = popped(schema.arguments().size());
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto* alias = schema.arguments()[i].alias_info();
    torch::jit::push(stack, with_tensors(arguments[i], [&](const Tensor& t) -> Tensor {
      if (!t.defined() || (!t.is_cuda() && t.dim() == 0)) return t;
      TORCH_CHECK(t.is_cuda(), "pretend GPU: ", name, " is given a CPU tensor of shape ", t.sizes(), " beside others");
      see(name, t, alias != nullptr && alias->isWrite());
      for (auto& [there, here] : both)
        if (there.is_same(t)) return here;
      both.emplace_back(t, host(t));
      return both.back().second;
    }));
  }

  op.callBoxed(stack);
  for (auto& [there, here] : both)
    if (there.sizes() != here.sizes()) {  // an output that was empty
      there.resize_(here.sizes());
      host(there).copy_(here);
    }

  const auto results = popped(schema.returns().size());
  for (size_t i = 0; i < results.size(); i++) {
    const auto* alias = schema.returns()[i].alias_info();
    torch::jit::push(stack, with_tensors(results[i], [&](const Tensor& t) -> Tensor {
      if (!t.defined()) return t;
      for (auto& [there, here] : both)
        if (here.is_same(t)) return there;
      TORCH_CHECK(alias == nullptr || alias->isWrite(), "pretend GPU: ", name, " returns a view, which it does not know");
      Tensor made = on_gpu(t);
      see(name, made, true);
      return made;
    }));
  }
}

// -- operations that are not run as they are -------------------------------------------------------------------------

namespace replaced {

Tensor empty(Sizes size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>, std::optional<bool>, std::optional<MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &device_memory, KEYS, dtype.value_or(kFloat), format);
}

Tensor empty_strided(Sizes size, Sizes stride, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &device_memory, KEYS, dtype.value_or(kFloat));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  Tensor src = source.expand(self.sizes());
  if (self.numel() == 0) return self;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  launches["copy"]++;
  given[stream]++;
  if (src.is_cuda()) see("copy", src, false);
  if (self.is_cuda()) see("copy", self, true);
  const bool on_device = src.is_cuda() && self.is_cuda();
  const Tensor& here = src.is_cuda() ? self : src;  // in host memory, if one is
  const bool is_block = here.is_non_overlapping_and_dense() && src.strides() == self.strides();  // else torch copies twice
  const bool pinned = !on_device && is_block && is_pinned(here.const_data_ptr());
  if (!on_device && !(non_blocking && pinned)) {
    wait(std::string(src.is_cuda() ? "copy to host memory" : "copy from host memory") + (non_blocking ? " that is not pinned" : ""));
  } else if (!on_device && src.is_cuda()) {  // what is fetched arrives when somebody waits for it
    if (is_on_the_way(self)) hazards["host memory is fetched to that a copy may be using"]++;
    on_the_way.push_back({stream, given[stream], self, host(src).clone(), true});
    std::memset(self.data_ptr(), 0xff, self.nbytes());
    return self;
  } else if (!on_device) {  // what is sent must stay as it is until it has arrived
    on_the_way.push_back({stream, given[stream], src, src.clone(), false});
  }
  host(self).copy_(host(src));
  return self;
}

// A launch of what only reads.
void begin(const std::string& name, std::initializer_list<Tensor> read) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  launches[name]++;
  given[stream]++;
  for (const Tensor& t : read)
    if (t.is_cuda()) see(name, t, false);
}

Scalar item(const Tensor& t) {
  begin("aten::item", {t});
  wait("item");
  return at::_local_scalar_dense(host(t));
}

Tensor nonzero(const Tensor& t) {
  begin("aten::nonzero", {t});
  wait("nonzero");
  return on_gpu(at::nonzero(host(t)));
}

Tensor masked_select(const Tensor& t, const Tensor& mask) {
  begin("aten::masked_select", {t, mask});
  wait("masked_select");
  return on_gpu(at::masked_select(host(t), host(mask)));
}

// Indices on the host, of which some make it wait.
torch::List<std::optional<Tensor>> indices_here(const torch::List<std::optional<Tensor>>& indices) {
  torch::List<std::optional<Tensor>> here;
  for (const std::optional<Tensor>& where : indices.vec()) {
    if (where && where->defined()) {
      if (where->is_cpu()) wait("index by numbers on the host");
      else see("aten::index", *where, false);
      if (where->scalar_type() == kBool) wait("index by a mask");
    }
    here.push_back(where ? std::optional<Tensor>(host(*where)) : where);
  }
  return here;
}

bool equal(const Tensor& t, const Tensor& other) {
  begin("aten::equal", {t, other});
  wait("equal");
  return at::equal(host(t), host(other));
}

Tensor index(const Tensor& t, const torch::List<std::optional<Tensor>>& indices) {
  begin("aten::index.Tensor", {t});
  return on_gpu(at::index(host(t), indices_here(indices)));
}

Tensor& index_put(Tensor& t, const torch::List<std::optional<Tensor>>& indices, const Tensor& values, bool accumulate, bool unsafe) {
  begin("aten::_index_put_impl_", {values});
  see("aten::_index_put_impl_", t, true);
  Tensor here = host(t);
  at::_index_put_impl_(here, indices_here(indices), host(values), accumulate, unsafe);
  return t;
}

Tensor as_strided(const Tensor& t, Sizes size, Sizes stride, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> first = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), first);
}

Tensor view(const Tensor& t, Sizes size) { return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size)); }

Tensor reshape_alias(const Tensor& t, Sizes size, Sizes stride) {
  return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

const Tensor& resize_(const Tensor& t, Sizes size_, std::optional<MemoryFormat>) {
  auto size = C10_AS_INTARRAYREF_SLOW(size_);
  if (t.sizes() != size) {
    Tensor larger = at::detail::empty_generic(size, &device_memory, KEYS, t.scalar_type(), std::nullopt);
    t.unsafeGetTensorImpl()->set_storage_keep_dtype(larger.storage());
    t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  }
  return t;
}

Tensor& set_storage(Tensor& t, Storage storage, c10::SymInt first, Sizes size, Sizes stride_) {
  auto stride = C10_AS_INTARRAYREF_SLOW(stride_);
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(first.expect_int());
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  if (!stride.empty()) impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), stride);
  return t;
}

Tensor& set_whole_storage(Tensor& t, Storage storage) {
  const int64_t num = storage.nbytes() / t.element_size();
  return set_storage(t, std::move(storage), 0, c10::SymIntArrayRef(std::vector<c10::SymInt>{num}), {});
}

}  // namespace replaced
}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &replaced::empty);
  m.impl("empty_strided", &replaced::empty_strided);
  m.impl("copy_", &replaced::copy_);
  m.impl("_local_scalar_dense", &replaced::item);
  m.impl("nonzero", &replaced::nonzero);
  m.impl("masked_select", &replaced::masked_select);
  m.impl("equal", &replaced::equal);
  m.impl("index.Tensor", &replaced::index);
  m.impl("_index_put_impl_", &replaced::index_put);
  m.impl("as_strided", &replaced::as_strided);
  m.impl("view", &replaced::view);
  m.impl("_reshape_alias", &replaced::reshape_alias);
  m.impl("resize_", &replaced::resize_);
  m.impl("set_.source_Storage_storage_offset", &replaced::set_storage);
  m.impl("set_.source_Storage", &replaced::set_whole_storage);
}
