// A part of operations.cpp, which is all that includes it: the device's streams, its memory, and what torch asks of it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <string>

using namespace at;

namespace {

const Device GPU(DeviceType::CUDA, 0);
const DispatchKeySet KEYS(DispatchKey::CUDA);

std::recursive_mutex mutex;  // the backward pass runs in a thread of its own
std::map<std::string, long> launches, waits, hazards;
thread_local int stream = 0;  // the current one; 0 is the default

// -- streams: what happened before what --------------------------------------------------------------------------
//
// Vector clocks. Every operation has a number on its stream. A stream knows of the others up to where it has waited for
// them, and everybody knows what the host has waited for. Who reads what another stream wrote later than that, or writes
// what it used, may be too early: a hazard. Memory that is handed out counts as written by the stream that asked for it,
// which may still be using what was there before.

std::map<int, long> given;                     // operations that a stream was given so far
std::map<int, std::map<int, long>> knows;      // of each stream, of the others
std::map<int, long> passed;                    // what the host has waited for
struct Uses {
  std::map<int, long> reads, writes;  // by stream, the last one
};
std::map<const void*, Uses> used;  // by the storage's first byte

bool may_be_busy(const std::map<int, long>& uses, int for_whom) {
  for (auto& [other, number] : uses)
    if (other != for_whom && number > std::max(knows[for_whom][other], passed[other])) return true;
  return false;
}

void see(const std::string& who, const void* storage, bool writes) {
  auto& uses = used[storage];
  if (may_be_busy(uses.writes, stream) || (writes && may_be_busy(uses.reads, stream))) hazards[who]++;
  (writes ? uses.writes : uses.reads)[stream] = given[stream];
}

void see(const std::string& who, const Tensor& t, bool writes) {
  if (t.defined() && t.has_storage() && t.storage()) see(who, t.storage().data(), writes);
}

// -- memory ------------------------------------------------------------------------------------------------------

std::map<uintptr_t, size_t> pinned;
long device_bytes = 0, peak_bytes = 0;

struct Owned {
  size_t size;
  int stream;               // to which it goes back
  std::set<int> recorded;   // streams that whoever frees it has thought of
};
std::map<const void*, Owned> owned;  // on the device

void freed(const void* p) {
  auto& [size, home, recorded] = owned[p];
  for (auto* uses : {&used[p].reads, &used[p].writes}) {
    std::map<int, long> unrecorded;
    for (auto& [other, number] : *uses)
      if (!recorded.count(other)) unrecorded[other] = number;
    if (may_be_busy(unrecorded, home)) hazards["memory is freed that a stream may be using"]++;
  }
  device_bytes -= (long)size;
  owned.erase(p);
  used.erase(p);
}

void* not_a_number(size_t size) {  // memory full of it
  void* p = nullptr;
  if (posix_memalign(&p, 512, size + 512)) throw std::bad_alloc();
  return std::memset(p, 0xff, size);
}

size_t rounded(size_t size) { return (size + 511) / 512 * 512; }  // as CUDA's caching allocator does

struct DeviceMemory final : public c10::Allocator {
  static void release(void* p) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    freed(p);
    std::free(p);
  }
  DataPtr allocate(size_t num) override {
    void* p = not_a_number(rounded(num));
    std::lock_guard<std::recursive_mutex> lock(mutex);
    owned[p] = {rounded(num), stream, {}};
    used[p].writes[stream] = given[stream];
    peak_bytes = std::max(peak_bytes, device_bytes += (long)rounded(num));
    return {p, p, &release, GPU};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t num) const override { std::memcpy(to, from, num); }
} device_memory;

struct PinnedMemory final : public c10::Allocator {
  static void release(void* p) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    pinned.erase((uintptr_t)p);
    std::free(p);
  }
  DataPtr allocate(size_t num) override {
    void* p = not_a_number(rounded(num));
    std::lock_guard<std::recursive_mutex> lock(mutex);
    pinned[(uintptr_t)p] = rounded(num);
    return {p, p, &release, Device(DeviceType::CPU)};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t num) const override { std::memcpy(to, from, num); }
} pinned_memory;

bool is_pinned(const void* p) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto next = pinned.upper_bound((uintptr_t)p);
  return next != pinned.begin() && (uintptr_t)p < (--next)->first + next->second;
}

// -- copies that nobody has waited for -------------------------------------------------------------------------------

struct Copy {
  int stream;
  long number;      // of the operation
  Tensor here, as_it_was;
  bool arrives;     // on the host, or leaves it
};
std::vector<Copy> on_the_way;

// The host knows that a stream has done what it was given up to `number`.
void pass(int of, long number) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  passed[of] = std::max(passed[of], number);
  std::vector<Copy> left;
  for (auto& copy : on_the_way) {
    if (copy.stream != of || copy.number > number) left.push_back(copy);
    else if (copy.arrives) copy.here.copy_(copy.as_it_was);
    else if (std::memcmp(copy.here.contiguous().const_data_ptr(), copy.as_it_was.contiguous().const_data_ptr(), copy.as_it_was.nbytes()))
      hazards["host memory is written that a copy may be reading"]++;
  }
  on_the_way.swap(left);
}

// The host waits for all that the current stream was given.
void wait(const std::string& why) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  waits[why]++;
  pass(stream, given[stream]);
}

// A copy to host memory that an earlier one may still be on its way to or from.
bool is_on_the_way(const Tensor& here) {
  for (auto& copy : on_the_way)
    if (copy.here.storage().data() == here.storage().data() && copy.here.const_data_ptr() == here.const_data_ptr()) return true;
  return false;
}

// -- what torch asks a device for ----------------------------------------------------------------------------------

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  c10::Stream default_stream() const { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const noexcept override { return default_stream(); }
  c10::Stream getDefaultStream(Device) const override { return default_stream(); }
  c10::Stream getNewStream(Device, int) const override { return default_stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return default_stream(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

// Python ends a thread that wants its lock while Python itself ends. The thread of backward passes may be at that when
// the main one is done, in a frame that must not be unwound: let it be, and the process end as it would.
[[maybe_unused]] const auto terminate_otherwise = std::set_terminate([] {
  while (!std::current_exception() && gettid() != getpid()) pause();
  std::abort();
});

}  // namespace

struct CUDAHooks : public CUDAHooksInterface {  // torch looks for this name
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  Device getDeviceFromPtr(void*) const override { return GPU; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// -- for the Python side, by ctypes ----------------------------------------------------------------------------------

extern "C" {
void pretend_set_stream(int number) { stream = number; }
int pretend_stream() { return stream; }
long pretend_given(int of) { return given[of]; }
void pretend_pass(int of, long number) { pass(of, number); }

void pretend_begin_kernel() {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  given[stream]++;
}

void pretend_see(const char* kernel, const void* storage) {  // of a kernel, which does not say whether it writes
  std::lock_guard<std::recursive_mutex> lock(mutex);
  see(kernel, storage, true);
}

void pretend_see_all(const char* kernel, const void** addresses, long num) {  // numbers, of which some are addresses
  std::lock_guard<std::recursive_mutex> lock(mutex);
  for (long i = 0; i < num; i++) {
    auto next = owned.upper_bound(addresses[i]);
    if (next != owned.begin() && (const char*)addresses[i] < (const char*)(--next)->first + next->second.size) see(kernel, next->first, true);
  }
}

void pretend_wait(const char* why, int of, long number) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  waits[why]++;
  pass(of, number);
}

void pretend_wait_stream(int who, int whom) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  for (auto& [other, number] : knows[whom]) knows[who][other] = std::max(knows[who][other], number);
  knows[who][whom] = given[whom];
}

void pretend_record_stream(const void* storage, int of) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (auto found = owned.find(storage); found != owned.end()) found->second.recorded.insert(of);
}

long pretend_bytes(int which) { return which == 0 ? device_bytes : peak_bytes; }
void pretend_forget_peak() { peak_bytes = device_bytes; }

void pretend_reset() {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  launches.clear();
  waits.clear();
  hazards.clear();
}

const char* pretend_counts(int which) {
  static std::string text;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  text.clear();
  for (auto& [name, number] : which == 0 ? launches : which == 1 ? waits : hazards) text += name + "\t" + std::to_string(number) + "\n";
  return text.c_str();
}
}
