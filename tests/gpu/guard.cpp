// What torch's autograd asks of several devices of one kind, on which nothing is ever waited for.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using namespace c10;
struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::PrivateUse1> {
  DeviceIndex deviceCount() const noexcept override { return COUNT; }
  Stream getStream(Device device) const noexcept override {
    return Stream(Stream::DEFAULT, device);
  }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
}  // namespace
