# Installs the build into a fresh prefix and uses it from outside: by find_package and by pkg-config.
# Variables: BUILD_DIR, SOURCE_DIR (of the project), WORK_DIR, C_COMPILER, CXX_COMPILER, FLAGS.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "exit status ${status}: ${command}")
  endif()
endfunction()

set(consumer ${SOURCE_DIR}/tests/consumer)
set(model ${SOURCE_DIR}/models/shakespeare-byte)
set(prefix ${WORK_DIR}/prefix)
file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${prefix})

run(${CMAKE_COMMAND} -S ${consumer} -B ${WORK_DIR}/build -G Ninja
    -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_C_COMPILER=${C_COMPILER}
    -DCMAKE_CXX_COMPILER=${CXX_COMPILER} "-DCMAKE_C_FLAGS=${FLAGS}" "-DCMAKE_CXX_FLAGS=${FLAGS}")
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/consumer_cpp ${model})
run(${WORK_DIR}/build/consumer_c ${model})

file(GLOB_RECURSE pc_file ${prefix}/*/xlstm.pc)
cmake_path(GET pc_file PARENT_PATH pc_dir)
cmake_path(GET pc_dir PARENT_PATH lib_dir)
set(ENV{PKG_CONFIG_PATH} ${pc_dir})
execute_process(COMMAND pkg-config --static --cflags --libs xlstm
                OUTPUT_VARIABLE pc_flags OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(pc_flags UNIX_COMMAND "${pc_flags}")
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
set(ENV{LD_LIBRARY_PATH} ${lib_dir})  # for a shared library
run(${CXX_COMPILER} -std=c++20 ${flags} ${consumer}/consumer.cpp -o ${WORK_DIR}/pc_cpp ${pc_flags})
run(${WORK_DIR}/pc_cpp ${model})
run(${C_COMPILER} ${flags} ${consumer}/consumer.c -o ${WORK_DIR}/pc_c ${pc_flags})
run(${WORK_DIR}/pc_c ${model})
