//! The conformance suite of devices, on the first OpenCL device of the machine.

use support::OpenCl;

mod support;

pagelease_device_tests::suite!(OpenCl);
