-- Tells NextSlice of each series that Orthanc has received in full. In orthanc.json: "LuaScripts": ["/etc/orthanc/nextslice.lua"]

local NEXTSLICE = 'http://127.0.0.1:8000'
local TOKEN = ''  -- of NextSlice, where it has accounts; else empty

-- Orthanc's scripts wait for one another: a server that is down must not hold them up. Older ones have "HttpTimeout" in orthanc.json.
if SetHttpTimeout then
  SetHttpTimeout(5)
end

function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'SEG' then
    return
  end
  local study = ParseJson(RestApiGet('/series/' .. seriesId .. '/study'))
  local body = {
    StudyInstanceUID = study['MainDicomTags']['StudyInstanceUID'],
    SeriesInstanceUID = tags['SeriesInstanceUID']
  }
  local headers = { ['Content-Type'] = 'application/json' }
  if TOKEN ~= '' then
    headers['Authorization'] = 'Bearer ' .. TOKEN
  end
  -- While a script runs, Orthanc answers nobody: wait=false, so that NextSlice searches it when the script is done.
  -- A call that fails is no loss: NextSlice also searches the archive by itself, every rescan_seconds.
  local ok, answer = pcall(HttpPost, NEXTSLICE .. '/al/studies?wait=false', DumpJson(body, true), headers)
  if ok and answer then
    print('NextSlice was told of series ' .. tags['SeriesInstanceUID'])
  else
    print('NextSlice did not answer at ' .. NEXTSLICE)
  end
end
