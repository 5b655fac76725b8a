include(CMakeFindDependencyMacro)
find_dependency(cppzmq)
include("${CMAKE_CURRENT_LIST_DIR}/xpose_client-targets.cmake")
